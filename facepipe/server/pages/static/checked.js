// What the answers tell about thresholds takes longer than the page: it is fetched behind it.

import { tellThere } from "./page.js";
import { change } from "./sender.js";

const place = document.getElementById("advice");
if (place) {
  const response = await fetch(place.dataset.address, { headers: { Accept: "text/html" } });
  const parsed = new DOMParser().parseFromString(await response.text(), "text/html");
  place.replaceChildren(...parsed.body.childNodes);
  place.addEventListener("click", (event) => {
    const button = event.target.closest("[data-threshold]");
    if (!button) return;
    button.disabled = true;
    const { threshold, name = null } = button.dataset;
    change({ do: "set_threshold", name, threshold_l2: Number(threshold) }).then((answer) => {
      if (answer) tellThere(answer.label);
      location.reload();
    });
  });
}
