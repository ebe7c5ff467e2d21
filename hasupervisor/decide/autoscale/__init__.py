"""How many instances there should be: two policies over measured load, each with one sentence that says why."""
