"""Stateful, strict simulators of the systems that citrixagent.py talks to."""
