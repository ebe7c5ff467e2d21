"""Tells people and machines what was seen, decided and done; decides nothing itself."""
