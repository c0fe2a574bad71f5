"""Page of the metric as a Space."""

from metric_page import page


# Two classes, two modalities: the first modality is always right, the second only for class 0.
LOGITS = [[[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.5], [0.6, 0.0]], [[1.0, 0.2], [0.9, 0.1]], [[0.0, 2.0], [0.5, 0.3]]]
demo = page("modality_balance", LOGITS, [0, 1, 0, 1])

if __name__ == "__main__":
    demo.launch()
