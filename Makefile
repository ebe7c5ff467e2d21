# make run     set everything up, then the daemon in the foreground: two instances behind http://127.0.0.1:8080/
# make test    set everything up, then the whole test suite (T="tests/config -k scanner" picks some)
# make check   lint, format, types, import rules: seconds
# make sim     live through a seed of the simulator again: SEED=7, HOURS=5 (20 if not given), all that happens is told;
#              with SEEDS=200 through so many from that one on, and only violations are told: SEED=1 HOURS=5 SEEDS=200
# make docs    write the generated pages anew
# make install sudo: onto this host, with systemd unit, manual pages and completion (DESTDIR=, PYTHON=); again to upgrade
# make uninstall  sudo: off it again; instances, configuration and state stay (PURGE=1: nothing stays)
# make deb     the same as a Debian package, dist/chatglm-ha_*.deb
# make clean   remove what these made, the virtual environment included
BIN := .venv/bin

.PHONY: run test check setup sim docs install uninstall deb clean

run:
	@tools/bootstrap.sh run
	@CHATGLM_HA_SOCKET=$(CURDIR)/.run/control.sock \
	  $(BIN)/chatglm-had --config config/embedded.toml --on-exit stop

test: setup check
	@$(BIN)/python -m pytest $(T)

setup:
	@tools/bootstrap.sh test

check: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

sim: setup
	@$(BIN)/python -m tests.sim $(or $(SEED),$(error say which seed: make sim SEED=7)) --hours $(or $(HOURS),20) --seeds $(or $(SEEDS),1) -v

docs: setup
	@$(BIN)/python tools/configdoc.py
	@$(BIN)/python tools/hactldoc.py
	@$(BIN)/python tools/gpudoc.py

install uninstall:
	@tools/install.sh $@

deb:
	@tools/deb.sh

clean:
	rm -rf .venv .run .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
