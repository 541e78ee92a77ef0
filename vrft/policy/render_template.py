"""Render a chat template in a process of its own, with limits: it is a program by a stranger and may never end.

Run as a file: reads a request as JSON from standard input and writes the texts, or what went wrong, to standard output.
Jinja's sandbox limits neither time nor memory, and `'a' * 10**10` can't be interrupted within a process.
"""

import json
import sys
from pathlib import Path


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """Limit what the process may use from here on. Only Linux tells, and limits, the size of a process."""
    import resource  # not on Windows

    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(usage.ru_utime + usage.ru_stime) + 1 + cpu_seconds
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))


def main() -> None:
    """Render the request's template for each of its conversations."""
    request = json.load(sys.stdin)
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
        longest = max(map(len, texts))
        if longest > request["characters"]:
            answer = {"error": f"makes {longest} characters of a short question"}
        else:
            answer = {"texts": texts}
    except MemoryError:
        answer = {"error": f"needs more than {request['memory_bytes'] >> 20} MB for a short question"}
    except failures as error:
        answer = {"error": f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    print(json.dumps(answer))  # noqa: T201


if __name__ == "__main__":
    main()
