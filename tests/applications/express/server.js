// An Express application as it should be run behind a load balancer.
//
// /livez says that the process works, /readyz that it wants traffic. On SIGTERM it first says that
// it is not ready, goes on serving until the balancer has noticed, and only then closes.
"use strict";

const express = require("express");

const name = process.env.NAME;
const port = Number(process.env.PORT);
// How long the balancer may need to notice: more than its time to eject.
const delay = 1000 * Number(process.env.SHUTDOWN_DELAY_SECONDS);
let stopping = false;

const app = express();
app.disable("x-powered-by");

app.use((request, response, next) => {
  // Clients that keep their connection go elsewhere with the next request.
  if (stopping) response.set("Connection", "close");
  next();
});

app.get("/livez", (request, response) => response.type("text").send("ok"));

app.get("/readyz", (request, response) => {
  response.status(stopping ? 503 : 200).type("text");
  response.send(stopping ? "stopping" : "ok");
});

app.get("/", (request, response) => response.type("text").send(name));

app.get("/slow", (request, response) => {
  setTimeout(() => response.type("text").send(name), 1000);
});

const server = app.listen(port, "::", (error) => {
  if (error) throw error;
});
server.keepAliveTimeout = 3600 * 1000;

process.on("SIGTERM", () => {
  stopping = true;
  setTimeout(() => {
    // Waits for the requests under way.
    server.close();
    server.closeIdleConnections();
  }, delay);
});
