"""Where examples come from: folders of images, generated images, and their augmentation."""
