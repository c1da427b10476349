"""Replies as no model should write them."""

from __future__ import annotations

MALFORMED = {
    "no tags": "the answer is 3",
    "nothing": "",
    "only blanks": " \n ",
    "skips a stage": "<SUMMARY>a</SUMMARY><CONCLUSION>3</CONCLUSION>",
    "wrong order": "<CONCLUSION>3</CONCLUSION><REASONING>b</REASONING><SUMMARY>a</SUMMARY>",
    "unclosed last": "<SUMMARY>a</SUMMARY><REASONING>b</REASONING><CONCLUSION>3",
    "unclosed inside": "<SUMMARY>a<REASONING>b</REASONING><CONCLUSION>3</CONCLUSION>",
    "empty stage": "<SUMMARY></SUMMARY><REASONING>b</REASONING><CONCLUSION>3</CONCLUSION>",
    "repeats": "<SUMMARY>a</SUMMARY><SUMMARY>a</SUMMARY><REASONING>b</REASONING>",
    "echo": "<SUMMARY>a</SUMMARY><REASONING>a</REASONING><CONCLUSION>3</CONCLUSION>",
    "closing only": "a</SUMMARY>b</REASONING>3</CONCLUSION>",
    "unknown tags": "<THINK>a</THINK><ANSWER>3</ANSWER>",
    "half a tag": "<SUMMARY>a</SUMM",
}
