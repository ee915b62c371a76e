"""What is recorded: CSV rows, TorchRL's loggers, plots, videos, snapshots."""

from torchrl_tdmpc.recording.plots import plot_returns
from torchrl_tdmpc.recording.provenance import write_config
from torchrl_tdmpc.recording.rows import RunLog, check_backend
from torchrl_tdmpc.recording.snapshots import append_snapshot, take_snapshot
from torchrl_tdmpc.recording.video import FirstEpisodeRecorder, check_video

__all__ = [
    "FirstEpisodeRecorder",
    "RunLog",
    "append_snapshot",
    "check_backend",
    "check_video",
    "plot_returns",
    "take_snapshot",
    "write_config",
]
