-- months whose revenue by zones is not that of their trips
SELECT pickup_year, pickup_month, of_trips, of_zones
FROM (SELECT pickup_year, pickup_month, sum(total_amount) AS of_trips FROM trips_enriched GROUP BY ALL)
FULL JOIN (SELECT pickup_year, pickup_month, sum(revenue) AS of_zones FROM zone_revenue GROUP BY ALL) USING (pickup_year, pickup_month)
WHERE of_trips IS DISTINCT FROM of_zones
