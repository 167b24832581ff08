"""Measures masks by the protocols of the Segment Anything paper, on data that lies on disk.

    runs            runs a protocol over a data set: stops, goes on, splits over processes
    reported        runs a protocol and leaves its report
    points_boxes    clicks and boxes -> IoU, number of clicks, calibration     (interact: one image)
    instance        a detector's boxes -> COCO or LVIS average precision       (detected: reads and checks the files)
    proposals       automatic masks -> recall without classes
    edges           automatic masks -> BSDS500                 (edge_maps, boundaries, edge_scores, region_scores, bsds)
    text            phrases -> hit rate
    bars            what the bundled model must reach
    metrics         figures that protocols share
    report, plots, pictures    what a run leaves behind
    data, options   the images of a data set; what each protocol may be told

A protocol is an object with `name`, `settings()`, `measure(item)` for one image and `values(rows)` over all of them
(`runs.EvaluationProtocol`). This file imports nothing, so that the command line starts without torch.
"""
