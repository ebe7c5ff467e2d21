"""The double speaks NVML's ABI as pynvml expects it, and as the real library is known to behave in trouble."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.doubles.nvml.cards import LOST, MISMATCH, NOT_LOADED, Card, NvmlDouble

PRELUDE = """
import json, os, sys
import pynvml as n
def code(call, *arguments):
    try:
        return call(*arguments)
    except n.NVMLError as error:
        return -error.value
def say(**words):
    print(json.dumps(words), flush=True)
"""
WITHIN = 30.0


def ask(nvml: NvmlDouble, script: str) -> dict[str, object]:
    """Runs a few lines with pynvml in a process that finds the double; returns what they `say`."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        env={**os.environ, **nvml.environment},
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert isinstance(said, dict)
    return said


def test_every_figure_arrives_in_the_struct_that_pynvml_has_for_it(nvml: NvmlDouble) -> None:
    card = nvml.cards[1]
    card.numbers = {
        "memory_total": 16_000,
        "memory_reserved": 500,
        "memory_unlisted": 250,
        "utilization": 71,
        "temperature": 61,
        "power": 55_000,
        "throttle": 0x48,
        "ecc_uncorrected": 7,
        "remap_pending": 1,
        "recovery": 2,
        "mig": 1,
    }
    card.processes = {4711: 10_000, 4712: -1}
    card.bus = "00000000:3B:00.0"
    nvml.tell()
    said = ask(
        nvml,
        """
        n.nvmlInit()
        h = n.nvmlDeviceGetHandleByIndex(1)
        new, old = n.nvmlDeviceGetMemoryInfo(h, version=n.nvmlMemory_v2), n.nvmlDeviceGetMemoryInfo(h)
        say(driver=n.nvmlSystemGetDriverVersion(), count=n.nvmlDeviceGetCount(), uuid=n.nvmlDeviceGetUUID(h),
            name=n.nvmlDeviceGetName(h), bus=n.nvmlDeviceGetPciInfo(h).busId,
            memory=[new.total, new.reserved, new.used, new.free, old.used, old.free],
            utilization=n.nvmlDeviceGetUtilizationRates(h).gpu, power=n.nvmlDeviceGetPowerUsage(h),
            temperature=n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU),
            throttle=n.nvmlDeviceGetCurrentClocksThrottleReasons(h),
            ecc=n.nvmlDeviceGetTotalEccErrors(h, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, n.NVML_VOLATILE_ECC),
            rows=n.nvmlDeviceGetRemappedRows(h), mig=n.nvmlDeviceGetMigMode(h),
            recovery=n.nvmlDeviceGetFieldValues(h, [230])[0].value.uiVal,
            processes=[[p.pid, p.usedGpuMemory] for p in n.nvmlDeviceGetComputeRunningProcesses_v3(h)])
        """,
    )
    assert said == {
        "driver": "550.163.01",
        "count": 2,
        "uuid": card.uuid,
        "name": "NVIDIA L4",
        "bus": "00000000:3B:00.0",
        "memory": [16_000, 500, 10_250, 5_250, 10_750, 5_250],
        "utilization": 71,
        "power": 55_000,
        "temperature": 61,
        "throttle": 0x48,
        "ecc": 7,
        "rows": [0, 0, 1, 0],
        "mig": [1, 1],
        "recovery": 2,
        "processes": [[4711, 10_000], [4712, None]],
    }


@pytest.mark.parametrize("code", [NOT_LOADED, MISMATCH])
def test_a_library_that_does_not_start_says_why_and_answers_nothing_else(nvml: NvmlDouble, code: int) -> None:
    nvml.init = code
    nvml.tell()
    said = ask(nvml, "say(init=code(n.nvmlInit), count=code(n.nvmlDeviceGetCount))")
    assert said == {"init": -code, "count": -1}


def test_one_card_fails_and_the_other_does_not(nvml: NvmlDouble) -> None:
    nvml.cards[0].failing = {"nvmlDeviceGetMemoryInfo": LOST}
    nvml.cards[1].numbers = {"recovery": -1, "temperature": -1}
    nvml.tell()
    said = ask(
        nvml,
        """
        n.nvmlInit()
        a, b = n.nvmlDeviceGetHandleByIndex(0), n.nvmlDeviceGetHandleByIndex(1)
        say(lost=code(n.nvmlDeviceGetMemoryInfo, a), name=n.nvmlDeviceGetName(a),
            total=n.nvmlDeviceGetMemoryInfo(b).total,
            recovery=n.nvmlDeviceGetFieldValues(b, [230])[0].nvmlReturn,
            temperature=code(n.nvmlDeviceGetTemperature, b, 0))
        """,
    )
    assert said == {"lost": -LOST, "name": "NVIDIA L4", "total": 24152899584, "recovery": 3, "temperature": -3}


def test_a_handle_stands_for_its_card_when_another_one_vanishes_and_indices_shift(nvml: NvmlDouble) -> None:
    gone, stays = nvml.uuids
    said = ask(
        nvml,
        f"""
        n.nvmlInit()
        a, b = n.nvmlDeviceGetHandleByIndex(0), n.nvmlDeviceGetHandleByIndex(1)
        path = os.path.join(os.environ["NVML_DOUBLE"], "cards")
        lines = open(path).read().splitlines()
        begin, end = lines.index("card {gone}"), lines.index("card {stays}")
        open(path + ".new", "w").write("\\n".join(lines[:begin] + lines[end:]) + "\\n")
        os.rename(path + ".new", path)
        say(gone=code(n.nvmlDeviceGetUUID, a), stays=n.nvmlDeviceGetUUID(b), first=n.nvmlDeviceGetUUID(
            n.nvmlDeviceGetHandleByIndex(0)), unknown=code(n.nvmlDeviceGetHandleByUUID, "{gone}"))
        """,
    )
    assert said == {"gone": -LOST, "stays": stays, "first": stays, "unknown": -6}


def test_a_set_hears_what_happens_to_its_own_cards_after_they_were_registered(nvml: NvmlDouble) -> None:
    first, second = nvml.cards
    nvml.xid(first, 31)
    said = ask(
        nvml,
        f"""
        def drained(events):
            codes = []
            while True:
                try:
                    codes.append(n.nvmlEventSetWait_v2(events, 0).eventData)
                except n.NVMLError as error:
                    return codes + [-error.value]
        n.nvmlInit()
        sets = []
        for i in range(2):
            h, s = n.nvmlDeviceGetHandleByIndex(i), n.nvmlEventSetCreate()
            n.nvmlDeviceRegisterEvents(h, n.nvmlDeviceGetSupportedEventTypes(h) & n.nvmlEventTypeXidCriticalError, s)
            sets.append(s)
        before = [drained(s) for s in sets]
        with open(os.path.join(os.environ["NVML_DOUBLE"], "xids"), "a") as xids:
            xids.write("{first.uuid} 48\\n{second.uuid} 79\\n{first.uuid} 63\\n{second.uuid} 1")
        say(before=before, after=[drained(s) for s in sets])
        """,
    )
    assert said == {"before": [[-10], [-10]], "after": [[48, 63, -10], [79, -10]]}


def test_a_call_hangs_until_the_line_goes(nvml: NvmlDouble) -> None:
    card: Card = nvml.cards[0]
    card.hanging = {"nvmlDeviceGetName"}
    nvml.tell()
    script = """
    n.nvmlInit()
    h = n.nvmlDeviceGetHandleByIndex(0)
    say(uuid=n.nvmlDeviceGetUUID(h))
    say(name=n.nvmlDeviceGetName(h))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script)],
        env={**os.environ, **nvml.environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"uuid": card.uuid}
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        card.hanging = set()
        nvml.tell()
        assert json.loads(process.communicate(timeout=WITHIN)[0]) == {"name": "NVIDIA L4"}
    finally:
        process.kill()
        process.wait()
