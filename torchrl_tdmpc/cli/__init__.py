"""The command line: Hydra YAML with its checks, and factories from it to parts of a run."""

from __future__ import annotations


def tdmpc2_train() -> None:
    """The console script ``tdmpc2-train``."""
    _refuse_without_extra()
    from torchrl_tdmpc.cli.train import main

    main()


def tdmpc2_evaluate() -> None:
    """The console script ``tdmpc2-evaluate``."""
    _refuse_without_extra()
    from torchrl_tdmpc.cli.evaluate import main

    main()


def tdmpc2_dataset() -> None:
    """The console script ``tdmpc2-dataset``."""
    _refuse_without_extra()
    from torchrl_tdmpc.cli.dataset import main

    main()


def tdmpc2_report() -> None:
    """The console script ``tdmpc2-report``."""
    _refuse_without_extra()
    from torchrl_tdmpc.cli.report import main

    main()


def _refuse_without_extra() -> None:
    """Name the extra that the command line needs, where it is not installed."""
    try:
        import hydra  # noqa: F401
        import matplotlib  # noqa: F401
        import tqdm  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"error: the command line needs {error.name}: pip install 'torchrl_tdmpc[cli]'."
        ) from None
