"""`python -m cot_engine.benchmarks.adapters vlmevalkit ...`: VLMEvalKit's own command line, with
the engine among its models. The other harnesses find it by themselves.
"""

import sys

from cot_engine import CotEngineError

_THEIRS = {
    "lmms-eval": "lmms-eval --model cot-engine",
    "inspect": "inspect eval --model cot-engine/",
}


def main() -> None:
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name != "vlmevalkit":
        other = f" {name} finds the engine itself: {_THEIRS[name]}" if name in _THEIRS else ""
        sys.exit(f"Say which harness is to be started: vlmevalkit, and then its arguments.{other}")
    try:
        from cot_engine.benchmarks.adapters import vlmevalkit

        vlmevalkit.main()
    except CotEngineError as error:
        print(f"cot-engine: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
