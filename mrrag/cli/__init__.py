"""The command line: a file a group of commands, each with its options beside what it runs.

It parses, calls, and prints. Nothing here computes, and nothing here imports the page.
"""
