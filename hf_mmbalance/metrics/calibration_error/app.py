"""Page of the metric as a Space."""

from metric_page import page


demo = page("calibration_error", [[2.0, 0.0, 0.1], [0.3, 0.9, 0.0], [0.2, 0.1, 1.4], [1.0, 0.8, 0.0]], [0, 1, 2, 1])

if __name__ == "__main__":
    demo.launch()
