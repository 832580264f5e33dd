"""Policies: YAML in, judgements out. Pure: no clock, no socket, no process, no file is opened here."""
