"""One click on a photograph, and the object under it in a picture: run it in the folder of the project."""

import numpy as np
from PIL import Image

from segment_anything import SamPredictor, load_sam, read_image
from segment_anything.visualize import overlay

image = read_image("examples/images/coffee.jpg")
predictor = SamPredictor(load_sam())
predictor.set_image(image)
masks, scores, _ = predictor.predict(point_coords=np.array([[290, 160]]), point_labels=np.array([1]))
picture = overlay(image, masks[scores.argmax()], points_xy=[[290, 160]], scale=2)
Image.fromarray(picture).save("coffee_segmented.png")
