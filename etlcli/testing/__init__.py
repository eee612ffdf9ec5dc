"""Checks that any stage must pass, for those built in and for plug-ins alike.

    contract.py  the stage contract, one check a rule
    faults.py    death, failure and interruption at every system call

The checks raise AssertionError with what differs; they need no test framework.
"""
