"""Files as a bad disk, a cut transfer or a careless editor leaves them."""


def damaged(content, rng):
    """The bytes with a bit flipped, a part overwritten, zeroed, cut out, repeated or cut off, or noise in front."""
    data = bytearray(content)
    place, size = rng.randrange(len(data)), rng.randrange(1, 64)
    kind = rng.randrange(7)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        data[place : place + size] = rng.randbytes(len(data[place : place + size]))
    elif kind == 2:
        data[place : place + size] = bytes(len(data[place : place + size]))
    elif kind == 3:
        del data[place : place + size]
    elif kind == 4:
        data[place:place] = data[place : place + size]
    elif kind == 5:
        del data[place:]
    else:
        data[:0] = rng.randbytes(size)
    return bytes(data)
