"""Render chat templates, third-party programs that may never terminate, in a separate process with limits.

Run as a file. It reads requests from standard input, one line of JSON each, and writes the texts, or the error, as a
line to standard output. Jinja's sandbox limits neither time nor memory, and `'a' * 10**10` can't be interrupted within
a process.
"""

import json
import signal
import sys
from pathlib import Path
from typing import Any


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Limit the additional time and memory of the process. Memory is limited on Linux only.

    Windows limits neither; there, only the timeout of the waiting process applies.
    """
    if sys.platform == "win32":
        return
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + 1 + cpu_seconds
    lower_limit(resource.RLIMIT_CPU, seconds)
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
        lower_limit(resource.RLIMIT_AS, used + memory_bytes)


def lower_limit(kind: int, value: int) -> None:
    """Set a soft limit, capped at the hard limit, which a cluster may set and no process can raise."""
    import resource

    _, hard = resource.getrlimit(kind)
    soft = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (soft, hard))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Render the request's template for each of its conversations."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    failures = (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError, AttributeError)
    if sys.platform != "win32":
        limit(request["cpu_seconds"], request["memory_bytes"])
    try:
        texts, _ = render_jinja_template(
            request["conversations"],
            chat_template=request["template"],
            add_generation_prompt=True,
            **request["tokens"],
        )
    except MemoryError:
        return {"error": f"needs more than {request['memory_bytes'] >> 20} MB for one question"}
    except failures as error:
        return {"error": f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    longest = max(map(len, texts))
    if longest > request["characters"]:
        return {"error": f"makes {longest} characters of one question"}
    return {"texts": texts}


def main() -> None:
    """Answer requests until standard input ends. Signals are left to the parent process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
