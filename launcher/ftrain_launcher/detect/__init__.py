"""Pure: records of communication to verdicts. Nothing here reads a clock, opens a file or asks a process.

After C4 (arXiv 2406.04594): collective communication is so regular that what departs from it is a fault, and who
waits for whom names the culprit.
"""
