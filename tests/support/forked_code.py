"""The module of a process that the warm process forked: runs the code on standard input as `python -c` would."""

import json
import os
import sys
import traceback

if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    sys.argv[1:] = given["arguments"]
    code = 0
    try:
        exec(compile(given["code"], "<forked>", "exec"), {"__name__": "__main__"})
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
