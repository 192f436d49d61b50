"""Hostile bodies for both servers, and what has to become of each.

`make.py` yields them all; `attack.py` sends them to a running server; `judge.py` compares values.
"""
