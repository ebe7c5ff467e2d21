"""What survives the daemon: wants, records, operations and history, in one SQLite file."""

from hasupervisor.memory.database import Memory, MemoryLost, MemoryTrouble, Remembered, TooNew
from hasupervisor.memory.rows import Entry
from hasupervisor.memory.scribe import Scribe, Trouble

__all__ = ["Entry", "Memory", "MemoryLost", "MemoryTrouble", "Remembered", "Scribe", "TooNew", "Trouble"]
