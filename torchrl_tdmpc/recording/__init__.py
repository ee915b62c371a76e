"""What is recorded: CSV rows, TorchRL's loggers, plots, videos, snapshots, progress (callbacks)."""

from torchrl_tdmpc.recording.csv_files import CsvFiles
from torchrl_tdmpc.recording.defaults import default_callbacks
from torchrl_tdmpc.recording.loggers import LoggerRows, check_backend, make_logger
from torchrl_tdmpc.recording.plots import ReturnsPlot, plot_returns
from torchrl_tdmpc.recording.progress import Progress, say_waiting
from torchrl_tdmpc.recording.provenance import write_config
from torchrl_tdmpc.recording.rows import RunRecord
from torchrl_tdmpc.recording.snapshots import ValueHeadSnapshots, take_snapshot
from torchrl_tdmpc.recording.tasks import OfflineProgress, OfflineRecord, normalised_score
from torchrl_tdmpc.recording.video import (
    FirstEpisodeRecorder,
    Videos,
    check_video,
    record_first_episode,
)

__all__ = [
    "CsvFiles",
    "FirstEpisodeRecorder",
    "OfflineProgress",
    "OfflineRecord",
    "LoggerRows",
    "Progress",
    "ReturnsPlot",
    "RunRecord",
    "ValueHeadSnapshots",
    "Videos",
    "check_backend",
    "check_video",
    "default_callbacks",
    "make_logger",
    "normalised_score",
    "plot_returns",
    "record_first_episode",
    "say_waiting",
    "take_snapshot",
    "write_config",
]
