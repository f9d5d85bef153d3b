"""Images as samples: decoding, preprocessing, thumbnails."""
