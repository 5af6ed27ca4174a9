"""Clips from YouTube, found by yt-dlp and fetched by closed byte ranges."""
