"""The verbs of the command line: their options, and what happens between options and documents."""
