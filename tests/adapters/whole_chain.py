"""A broken adapter: the whole chain is scored, and not its CONCLUSION. `python whole_chain.py
MODULE ...` is `python -m MODULE ...` with it."""

import runpy
import sys
from dataclasses import replace

from cot_engine.benchmarks.adapters.respondent import Respondent

sound = Respondent._reply
Respondent._reply = lambda self, answer: replace(sound(self, answer), text=answer.chain.text)

del sys.argv[0]
sys.path[0] = ""  # as -m has it
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
