"""How fast planner, update, replay and loop are, beside TorchRL's own TD-MPC2.

``make bench`` measures everything; ``docs/speed.md`` says what the numbers mean.
"""
