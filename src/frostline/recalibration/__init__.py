"""Recalibration: running statistics that are those of a calibration set."""

from frostline.recalibration.recalibrate import recalibrate as recalibrate
