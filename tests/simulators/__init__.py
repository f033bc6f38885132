"""Stateful, strict simulators of the systems that citrixagent.py talks to."""

HUNG = 180  # seconds; who is not done by then hangs: the one limit of time that tests know
