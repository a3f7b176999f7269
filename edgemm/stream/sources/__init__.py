"""Where frames come from: files and URLs, folders of images, generators; the protocol fits live devices, too."""
