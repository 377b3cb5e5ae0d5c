const http = require("http");
const os = require("os");
const { WebSocketServer } = require("ws");

const server = http.createServer((request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ path: request.url, cores: os.cpus().length, user: process.getuid() }));
});

const sockets = new WebSocketServer({ server });
sockets.on("connection", (socket) => {
  socket.on("message", (message, isBinary) => socket.send(message, { binary: isBinary }));
});

server.listen(3000);
process.on("SIGTERM", () => {
  console.log("told to stop");
  server.close(() => process.exit(0));
  sockets.clients.forEach((socket) => socket.close(1001));
});
