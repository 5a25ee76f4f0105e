"""Networks in PyTorch, written from the papers' descriptions, trained on simulated images.

`data.py` draws them; `networks.py` names the networks; `train.py` and `evaluate.py` are the
commands, with `robustness.py`, `learning.py` (curves) and `weights.py` (what is kept).
"""
