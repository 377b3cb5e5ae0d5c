const http = require("http");
const os = require("os");
const { WebSocketServer } = require("ws");

const server = http.createServer((request, response) => {
  const answer = { path: request.url, cores: os.cpus().length, user: process.getuid() };
  // /slow/3 takes three seconds.
  const [, seconds] = request.url.match(/^\/slow\/(\d+)$/) || [0, 0];
  setTimeout(() => {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(answer));
  }, seconds * 1000);
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
