"""ChatGLM-6B's sentencepiece file, which before v1.1 lacks the pieces that its published code added at every start."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

LONGEST_BLANK = 80  # runs of up to so many spaces are one token
CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
SYMBOLS = ("<|tab|>", *(f"<|blank_{size}|>" for size in range(2, LONGEST_BLANK + 1)))

# Kinds of piece and field numbers of sentencepiece's model format (sentencepiece_model.proto).
CONTROL, USER_DEFINED, BYTE = 3, 4, 6
PIECES, TRAINER = 1, 2  # of the model
BYTE_FALLBACK = 35  # of the trainer's part


def first_pieces(file: Path) -> Any:
    """The file's processor, with the special pieces and the 256 bytes that v1.0's code appends.

    Every part of the format may be continued at its end, which is how they are added. Raises OSError or RuntimeError
    where the file cannot be read.
    """
    data = file.read_bytes()
    pieces: Any = SentencePieceProcessor(model_proto=data)
    if pieces.piece_to_id("<sop>") != pieces.unk_id():
        return pieces
    added = [
        *((piece, CONTROL) for piece in CONTROLS),
        *((piece, USER_DEFINED) for piece in SYMBOLS),
        *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
    ]
    data += b"".join(_field(PIECES, _piece(piece, kind)) for piece, kind in added)
    data += _field(TRAINER, _varint(BYTE_FALLBACK << 3) + b"\x01")
    whole: Any = SentencePieceProcessor(model_proto=data)
    return whole


def _piece(text: str, kind: int) -> bytes:
    """A piece without a score."""
    return _field(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", 0.0) + _varint(3 << 3) + _varint(kind)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
