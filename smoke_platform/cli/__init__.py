"""The `smoke` command: words in, calls to the rooms below, words out. No logic of its own."""
