"""Bytes in and out. Everything that opens, reads, writes, renames or deletes is here.

    inputs.py       paths, URLs and stdin -> byte streams
    remote.py       http and https: opening with another try, bodies that must be whole
    compression.py  gzip, bz2, xz, zstd, by magic when reading and by suffix when writing
    files.py        atomic files: published by rename, or not at all
    stdout.py       standard output, and what may be wrong with it
    spill.py        sorted runs on disk, without names
    piles.py        runs of records whose keys are few, merged without a look at the records
    stepfiles.py    what a step may write, and that nobody else does
    kept.py         outputs and spill files that outlive their process
    extents.py      plain files in parts that any process can read
    identity.py     which file it was
    command.py      external commands, and several side by side
    signals.py      signals that wait for the end of something short
    handshake.py    two `etl` processes on one pipe: noticing that the upstream did not finish
    terminal.py     data made safe to show

An `OSError` leaves this package as an `EtlError` that names the path.
"""
