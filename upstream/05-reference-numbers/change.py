"""Numbers of the official implementation as tests, and a recipe with its settings."""

from pathlib import Path

NEEDS = ()
HOLD_ALREADY = ("test/objectives/test_tdmpc2_reference.py",)  # the nightly is right
HERE = Path(__file__).parent / "recipe"
RECIPE = "sota-implementations/tdmpc2"
SMOKE_TESTS = ".github/unittest/linux_sota/scripts/test_sota.py"
LIST = "sota-implementations/README.md"


def change(tree):
    """Add the recipe and name it where recipes are listed; no line of ``torchrl/`` changes."""
    for file in ("README.md", "config.yaml", "tdmpc2.py"):
        tree.new(f"{RECIPE}/{file}", (HERE / file).read_text())
    tree.new("sota-check/run_tdmpc2.sh", (HERE / "run_tdmpc2.sh").read_text())
    if tree.has(LIST):
        tree.file(LIST).after("- [TD3](", "- [TD-MPC2](tdmpc2/)")
    if tree.has(SMOKE_TESTS):
        tree.file(SMOKE_TESTS).before(
            '"tqc": """python',
            '''
                "tdmpc2": """python sota-implementations/tdmpc2/tdmpc2.py \\
              collector.total_frames=20 \\
              collector.init_random_frames=8 \\
              trainer.batch_size=4 \\
              trainer.logger=null \\
              planner.num_samples=8 \\
              planner.num_elites=4 \\
              planner.num_pi_trajs=2 \\
              evaluation.every=10 \\
              evaluation.episodes=1 \\
              episode_length=10
            """,
            ''',
            indent=0,
        )
