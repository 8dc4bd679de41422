"""Classification of clips, on the device or by the cloud, as the link allows."""
