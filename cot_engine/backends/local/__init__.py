"""One model in this process, through torch and transformers.

`opener` has what there is to choose and `loading` reads a checkpoint. Requests come in at `backend`
and are answered by `worker` in the `model_thread`: `prefill` reads and `decode` writes, both on
`kv`, what is computed lies in the tree of `prefix`, what rows share in `shared`; `step` is what a
GPU repeats. `text` is the tokenizer and the chat format.
`needs` says what a checkpoint would take, without torch, and `here` what there is.
"""
