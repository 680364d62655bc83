"""Speed and cost, each against a PyTorch loop of our own writing in the same run:
`step`, `input`, `ops`, `check`.

Every contender is a process of its own. They take turns, a few steps each, and what is
reported are medians over the rounds and medians of each round's ratio: what slows the
machine for a while slows them all.
"""
