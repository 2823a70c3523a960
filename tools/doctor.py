#!/usr/bin/env python3
"""Run `mink-decouple doctor`."""

import sys

from mink_decouple.cli import tool

if __name__ == "__main__":
    sys.exit(tool("doctor"))
