"""HTTP/1.1 on raw transports: strict heads and framing, server and engine connections, pools."""
