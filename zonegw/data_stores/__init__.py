"""Data stores: where a zone keeps image bytes, each under an opaque key minted at upload.

interface                        what a store promises, and what the kinds share
filesystem                       files of this machine
swift, swift_connection, _auth   a container of Swift; requests to its account; logins (v1, Keystone v3, none)
s3, s3_uploads                   a bucket (obstore); uploads that were cut off
resuming, secret                 reads that go on after a broken connection; secrets in files
opening                          one of them from its entry in zonegw.toml
"""
