"""What a power failure leaves of an LMDB file: a record of its writes and syncs, and every file that may come of it.

recorder.c  preloaded into the process under test: notes each write and sync of data.mdb, in order
recorder    compiles it, and the environment that preloads it
rebuild     the file as of its last sync, plus whatever the disk may have kept of later writes
"""
