"""The official implementation of TD-MPC2, run from a checkout of its repository."""
