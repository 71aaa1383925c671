"""Answers made visible: the terminal table, the HTML report, and the folder they are written to."""
