"""Looking for patterns in what is sent, as it passes: bounded memory, linear time, and nothing is kept.

patterns    what is looked for: card numbers, IBANs, keys, words
stream      patterns over bytes that come in pieces of any size
unpack      compressed bodies, bounded in ratio and in size
readings    text that is written in another way: forms, JSON, base64
sieve       one body: what may go on, and what ended it

Pure: bytes in, bytes and names out. What was found is told as the name of a pattern and a place; the bytes
themselves are never stored, logged or shown.
"""
