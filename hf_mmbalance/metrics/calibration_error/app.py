"""Demo page of the metric as a Space."""

import evaluate
from evaluate.utils import launch_gradio_widget


launch_gradio_widget(evaluate.load("calibration_error.py"))
