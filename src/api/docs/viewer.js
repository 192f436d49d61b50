// Shows the description of the chosen server. If the API server has tokens, asks for one.
"use strict";

const server = document.getElementById("server");
const login = document.getElementById("login");
const token = document.getElementById("token");
const problem = document.getElementById("problem");

async function show() {
  problem.textContent = "";
  const headers = token.value ? { Authorization: `Bearer ${token.value}` } : {};
  const answer = await fetch(server.value, { headers });
  login.hidden = answer.status !== 401;
  if (!answer.ok) {
    const { detail, ERROR } = await answer.json();
    problem.textContent = detail ?? ERROR;
    return;
  }
  SwaggerUIBundle({
    domNode: document.getElementById("viewer"),
    spec: await answer.json(),
    // it only shows: a wrong click must not discard a message
    supportedSubmitMethods: [],
    validatorUrl: null,
  });
}

function showOrReport() {
  show().catch((error) => {
    problem.textContent = `The description cannot be loaded: ${error.message}`;
  });
}

server.addEventListener("change", showOrReport);
login.addEventListener("submit", (event) => {
  event.preventDefault();
  showOrReport();
});
showOrReport();
